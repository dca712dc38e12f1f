import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * Posts files to a URL with java.net.http. Arguments: the URL and the files.
 *
 * <p>In its default mode the client offers HTTP/2 with each request. Every second body has no known
 * length, so it is sent chunked; every fourth request waits for {@code 100 Continue}. Prints the
 * statuses, one a line.
 */
class PostFiles {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int number = 0; number + 1 < arguments.length; number++) {
            byte[] body = Files.readAllBytes(Path.of(arguments[number + 1]));
            HttpRequest request =
                    HttpRequest.newBuilder(URI.create(arguments[0]))
                            .header("Content-Type", "application/json")
                            .expectContinue(number % 4 == 3)
                            .POST(
                                    number % 2 == 0
                                            ? BodyPublishers.ofByteArray(body)
                                            : BodyPublishers.ofInputStream(
                                                    () -> new ByteArrayInputStream(body)))
                            .build();
            System.out.println(client.send(request, BodyHandlers.ofString()).statusCode());
        }
    }
}
